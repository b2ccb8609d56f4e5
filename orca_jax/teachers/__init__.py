"""One engine that puts questions to anything that chats, and pays for no answer twice."""
