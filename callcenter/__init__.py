"""A contact-centre engine for government service hotlines."""
