"""Show what runs said: tables and pictures."""
