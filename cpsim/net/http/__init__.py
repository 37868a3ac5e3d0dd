"""HTTP requests and responses, and the connections that carry them."""
