"""LangSmith in, LangSmith out. Nothing here is used, or sent, unless the user asked for it."""
