"""The student serves: in this process here, over HTTP later."""
