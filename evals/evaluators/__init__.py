"""Evaluators for the example graphs: functions that LangSmith's `evaluate` accepts as they are."""
