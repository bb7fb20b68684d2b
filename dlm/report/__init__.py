"""What reports are made of: files in, figures and pages out. No torch anywhere in here."""
