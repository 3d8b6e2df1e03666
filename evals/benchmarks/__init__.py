"""Benchmarks that use the public interface only. Each is a script that prints what it measured."""
