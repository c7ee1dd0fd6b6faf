"""What every stage uses: catalog, this machine, files, programs, a run's folder, templates, conversations."""
