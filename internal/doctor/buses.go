package doctor

import (
	"encoding/xml"
	"strconv"
	"strings"
)

// busesIn finds the bus of every PCI address of a domain, whatever kind of device has it.
func busesIn(domainXML string) []uint {
	var buses []uint
	d := xml.NewDecoder(strings.NewReader(domainXML))
	inSource := 0 // a host device's own address on the host is inside its <source>
	for {
		token, err := d.Token()
		if err != nil {
			return buses
		}
		switch t := token.(type) {
		case xml.StartElement:
			if t.Name.Local == "source" || inSource > 0 {
				inSource++
				continue
			}
			if t.Name.Local == "address" && attr(t, "type") == "pci" {
				if n, err := strconv.ParseUint(attr(t, "bus"), 0, 16); err == nil {
					buses = append(buses, uint(n))
				}
			}
		case xml.EndElement:
			if inSource > 0 {
				inSource--
			}
		}
	}
}

func attr(e xml.StartElement, name string) string {
	for _, a := range e.Attr {
		if a.Name.Local == name {
			return a.Value
		}
	}
	return ""
}
