"""The student serves: in this process, and over HTTP."""
