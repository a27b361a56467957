"""The page without the server: a static server, a Chromium, and a far end inside the page."""
