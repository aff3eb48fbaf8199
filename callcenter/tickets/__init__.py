"""Call records and tickets: schema, store and journal."""
