"""What scripts/attack.py does to the program: damaged files, kills at random moments, full disks."""
