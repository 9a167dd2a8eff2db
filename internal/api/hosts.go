package api

// Paths of the daemon's control socket that are about other hosts, and about the exception cache.
const (
	PathVolumeCache = "/v1/volumes/{name}/cache" // POST CacheRequest -> VolumeStatus
	PathHosts       = "/v1/hosts"                // GET -> HostList
	PathHostFenced  = "/v1/hosts/fenced"         // POST FencedRequest -> FencedReport
)

// HostStatus is what is known of another host.
type HostStatus struct {
	HostName string   `json:"hostName,omitempty"`
	Host     string   `json:"host,omitempty"` // UUID
	Address  string   `json:"address"`
	Version  string   `json:"version,omitempty"` // of its program
	Answers  bool     `json:"answers"`
	Error    string   `json:"error,omitempty"` // why it does not
	Volumes  []string `json:"volumes"`         // of the catalogue that it owns, as far as their headers were read
}

// HostList is this host and those that own volumes of the catalogue or have a grant.
type HostList struct {
	This  PeerHello    `json:"this"`
	Hosts []HostStatus `json:"hosts"`
}

// FencedRequest is the operator's word that a host is dead: it is off, or cut from the storage, and will not write again.
type FencedRequest struct {
	Host string `json:"host"` // name or UUID
}

// FencedVolume is a volume for which the word counts.
type FencedVolume struct {
	Volume string `json:"volume"`
	Epoch  uint32 `json:"epoch"`
	Grant  bool   `json:"grant,omitempty"` // the host had a grant, and was not the owner
	Error  string `json:"error,omitempty"`
}

// FencedReport lists what the word counts for: what the host owned, or was granted, when it was given. What it owns later needs
// another word. Unread are volumes whose header could not be read.
type FencedReport struct {
	Host     string         `json:"host"` // UUID
	HostName string         `json:"hostName,omitempty"`
	Volumes  []FencedVolume `json:"volumes"`
	Unread   []FencedVolume `json:"unread"`
}

// MigrationStatus tells of a domain's migration as it concerns one volume.
type MigrationStatus struct {
	ID        string `json:"id"`        // the same on both hosts
	Direction string `json:"direction"` // in, out
	Peer      string `json:"peer"`      // host name
	Since     int64  `json:"since"`     // Unix seconds
	Waits     string `json:"waits,omitempty"`
}
