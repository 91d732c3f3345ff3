"""What recipes share: published networks and their settings."""
