"""The centre's GraphQL: types with the names that existing clients ask for, queries and mutations."""
