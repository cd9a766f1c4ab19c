"""What every part of Podium stands on: settings, data, tracking, packaging, scoring."""
