"""recplug."""
