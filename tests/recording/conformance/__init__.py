"""Constructs of LangGraph, each with the trace that it must give, written by hand."""
