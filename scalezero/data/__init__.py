"""What is remembered, and what is sampled?"""
