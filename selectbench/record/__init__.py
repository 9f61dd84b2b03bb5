"""What a trial leaves on disk, and what passes between bench and worker."""
