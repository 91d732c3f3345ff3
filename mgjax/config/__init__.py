"""Every setting: its meaning, default and accepted values; config files."""
