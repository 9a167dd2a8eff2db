package config

import (
	"fmt"
	"reflect"
	"strconv"
	"strings"
)

// Key is one setting.
type Key struct {
	Name string // as in the file, with its table: libvirt.socket
	Env  string // environment variable that sets it
}

// Keys lists all settings in the order of the struct.
func Keys() []Key {
	var keys []Key
	each(reflect.TypeFor[Config](), "", nil, func(name string, f reflect.StructField, _ []int) {
		keys = append(keys, Key{Name: name, Env: f.Tag.Get("env")})
	})
	return keys
}

// Get returns a setting: a string, an int, a Duration or a list of strings. It panics for a key that Keys has not.
func (c *Config) Get(key string) any { return c.field(key).Interface() }

// field finds a setting by the name that Keys gives it.
func (c *Config) field(key string) reflect.Value {
	var found reflect.Value
	v := reflect.ValueOf(c).Elem()
	each(v.Type(), "", nil, func(name string, _ reflect.StructField, index []int) {
		if name == key {
			found = v.FieldByIndex(index)
		}
	})
	if !found.IsValid() {
		panic("config: no key " + key)
	}
	return found
}

// each walks the leaves of a struct of structs.
func each(t reflect.Type, prefix string, index []int, f func(name string, field reflect.StructField, index []int)) {
	for i := range t.NumField() {
		field := t.Field(i)
		name, at := prefix+field.Tag.Get("toml"), append(index[:len(index):len(index)], i)
		if field.Type.Kind() == reflect.Struct {
			each(field.Type, name+".", at, f)
		} else {
			f(name, field, at)
		}
	}
}

// set gives a leaf a value as the TOML decoder yields it.
func set(field reflect.Value, value any) error {
	switch to := field.Addr().Interface().(type) {
	case *string:
		s, ok := value.(string)
		if !ok {
			return fmt.Errorf("is %s, but must be text in quotes", kindOf(value))
		}
		*to = s
	case *int:
		n, err := number(value)
		if err != nil {
			return err
		}
		*to = n
	case *Duration:
		s, ok := value.(string)
		if !ok {
			return fmt.Errorf("is %s, but must be a time in quotes, such as \"45s\"", kindOf(value))
		}
		return to.UnmarshalText([]byte(s))
	case *[]string:
		list, ok := value.([]any)
		if !ok {
			return fmt.Errorf("is %s, but must be a list of texts, such as [\"a\", \"b\"]", kindOf(value))
		}
		texts := make([]string, 0, len(list))
		for _, item := range list {
			s, ok := item.(string)
			if !ok {
				return fmt.Errorf("has %s in it, but must be a list of texts, such as [\"a\", \"b\"]", kindOf(item))
			}
			texts = append(texts, s)
		}
		*to = texts
	default:
		panic("config: no way to set a " + field.Type().String())
	}
	return nil
}

// number reads a count from 1 on, as the file has it or as text.
func number(value any) (int, error) {
	switch v := value.(type) {
	case int64:
		if v > 0 && v <= 1<<16 {
			return int(v), nil
		}
	case string:
		if n, err := strconv.ParseUint(v, 10, 16); err == nil && n > 0 {
			return int(n), nil
		}
	default:
		return 0, fmt.Errorf("is %s, but must be a number", kindOf(value))
	}
	return 0, fmt.Errorf("is %v, but must be a number from 1 on", value)
}

// setText gives a leaf a value as an environment variable or a flag has it.
func setText(field reflect.Value, text string) error {
	if _, list := field.Interface().([]string); !list {
		return set(field, text)
	}
	var items []any
	for item := range strings.SplitSeq(text, ":") {
		if item != "" {
			items = append(items, item)
		}
	}
	return set(field, items)
}

func kindOf(v any) string {
	switch v.(type) {
	case string:
		return "text"
	case bool:
		return "true or false"
	case int64, float64:
		return "a number"
	case []any:
		return "a list"
	case map[string]any:
		return "a table"
	}
	return "a date or time"
}
