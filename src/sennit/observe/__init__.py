"""5. It is seen: subscribers only; nothing that decides imports from here."""
