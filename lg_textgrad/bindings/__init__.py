"""How a node gets its prompt, and how its model calls are paid for.

A way of holding a prompt is one file here that implements `Binding`. Declared parameters, which a
node reads by itself, need nothing but the candidate in scope.
"""
