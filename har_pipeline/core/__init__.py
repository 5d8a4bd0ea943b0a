"""Used by all other rooms: errors, records, options, and files that appear whole or not at all."""
