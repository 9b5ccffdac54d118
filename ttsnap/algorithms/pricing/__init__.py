"""The price-of-compute policy, and the forecast of finished rewards from early scores that it
decides by."""
