"""The words and the rules: pure, without clock or I/O."""
