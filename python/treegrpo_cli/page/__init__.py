"""Trees -> one self-contained HTML page: what `treegrpo inspect-tree --html` writes."""
