"""What the papers print: their tables and figures, computed and measured."""
