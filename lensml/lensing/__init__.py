"""What a lens does to light: lenses, magnification, caustics, point-lens fits."""
