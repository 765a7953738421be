"""What any training repository needs; nothing in here knows of GST's data sets or programs."""
