"""wamkit inside other libraries."""
