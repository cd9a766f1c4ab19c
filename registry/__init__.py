"""From candidate to production: gates, releases, the alias `champion`."""
