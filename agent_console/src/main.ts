import './styles/tokens.css'
import './styles/base.css'
import { createPinia } from 'pinia'
import { createApp } from 'vue'
import App from './App.vue'
import { i18n } from './i18n'
import { listenToKeys } from './keys'
import { router } from './router'

createApp(App).use(createPinia()).use(router).use(i18n).mount('#app')
listenToKeys()
