package libvirtx

import (
	"encoding/xml"
	"errors"
	"fmt"
)

// Namespace names virt-cow's metadata element in a domain's XML, version 1.0.
const Namespace = "http://virt-cow.org/xmlns/libvirt/domain/1.0"

// Prefix is what the element is written with.
const Prefix = "virtcow"

// Want is one disk a domain should have: in XML in its metadata, in JSON in the record of its engine.
type Want struct {
	Volume string `xml:"volume,attr" json:"volume"`
	Store  string `xml:"store,attr" json:"store"`                 // path
	Target string `xml:"target,attr" json:"target"`               // such as vdb
	Bus    string `xml:"bus,attr,omitempty" json:"bus,omitempty"` // "" for virtio

	// What is not there is left to the engine. Both are kept here so that they hold at the next start too.
	Hydrate string `xml:"hydrate,attr,omitempty" json:"hydrate,omitempty"` // "no": not in the background
	Rate    int64  `xml:"rate,attr,omitempty" json:"rate,omitempty"`       // of hydration, bytes a second, 0: no limit
}

// wants is the element as libvirt takes it: it adds the namespace and its prefix itself.
type wants struct {
	XMLName xml.Name `xml:"disks"`
	Disks   []Want   `xml:"disk"`
}

// ParseWants reads the element as Metadata returns it; "" is no disks. Prefixes are not looked at: libvirt
// writes the element back with the namespace in several forms.
func ParseWants(element string) ([]Want, error) {
	if element == "" {
		return nil, nil
	}
	var w wants
	if err := xml.Unmarshal([]byte(element), &w); err != nil {
		return nil, fmt.Errorf("metadata element %s disks: %w", Prefix, err)
	}
	return w.Disks, checkWants(w.Disks)
}

func checkWants(disks []Want) error {
	seen := map[string]bool{}
	for _, d := range disks {
		switch {
		case d.Volume == "" || d.Store == "" || d.Target == "":
			return fmt.Errorf("metadata element %s disks: a disk needs volume, store and target, this one has %q, %q, %q",
				Prefix, d.Volume, d.Store, d.Target)
		case seen["v "+d.Volume]:
			return fmt.Errorf("metadata element %s disks: volume %s is there twice", Prefix, d.Volume)
		case seen["t "+d.Target]:
			return fmt.Errorf("metadata element %s disks: target %s is there twice", Prefix, d.Target)
		}
		seen["v "+d.Volume], seen["t "+d.Target] = true, true
	}
	return nil
}

// FormatWants makes the element for SetMetadata; no disks make "".
func FormatWants(disks []Want) (string, error) {
	if len(disks) == 0 {
		return "", nil
	}
	b, err := xml.Marshal(wants{Disks: disks})
	return string(b), err
}

// Places says which definitions a domain has: transient ones have none stored.
type Places struct{ Live, Stored bool }

// SetEverywhere sets a domain's metadata in all its places. A domain that starts or ends meanwhile is set again: it
// would run with the old element. It is for the drivers.
func SetEverywhere(places func() (Places, error), set func(Places) error) error {
	now, err := places()
	for range 5 {
		if err != nil {
			return err
		}
		was := now
		failed := set(was)
		if now, err = places(); err != nil || now == was {
			return errors.Join(failed, err)
		}
	}
	return errors.New("the domain keeps starting and stopping")
}
