package api

import "github.com/google/uuid"

// IsUUID says whether s is a UUID as it is printed, in lower case with hyphens, and not zero. Such a one may become a file's name.
func IsUUID(s string) bool {
	id, err := uuid.Parse(s)
	return err == nil && id != uuid.Nil && id.String() == s
}
