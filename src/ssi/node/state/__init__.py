"""What every member knows alike: the view, the cluster's init, its registers."""
