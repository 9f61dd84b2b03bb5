"""Suite files: validated, resolved, with errors that point at the line."""
