"""What everything else stands on: errors, records, files that appear whole or not at all."""
