"""From a file to pixels: images, videos, frame folders, resizing."""
