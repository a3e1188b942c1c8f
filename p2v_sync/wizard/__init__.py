"""What the live CD asks: settings, where their values come from, and the screens."""
