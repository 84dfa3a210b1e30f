"""How operators move and unite channel labels: one file a family of operators."""
