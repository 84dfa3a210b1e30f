"""From a result document to what people and CI systems read."""
