"""The site's tier: takes commands on sockets, acknowledges them, and passes them on in order."""
