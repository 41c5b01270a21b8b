"""A reverse proxy that offers the four sampling profiles as virtual model names in front of one server."""
