"""The formats of trainers, one file each."""
