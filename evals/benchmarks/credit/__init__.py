"""How often the largest weight falls on the one node of six in which a fault was seeded."""
