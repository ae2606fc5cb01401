"""What `adm study NAME` runs: a file each, found by name. Each says what it compares and how it is measured."""
