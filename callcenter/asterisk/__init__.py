"""Everything that knows an AMI header, a dialplan line or an Asterisk path."""
