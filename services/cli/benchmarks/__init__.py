"""What `skerry bench` measures, and what it measures with: a load generator and floors in processes of their own."""
