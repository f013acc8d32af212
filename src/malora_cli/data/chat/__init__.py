"""Chat templates: what one is, found once by probing it, and what of a conversation is context and what an answer."""
