import { createRouter, createWebHashHistory } from 'vue-router'
import { useSession } from './session'

export const router = createRouter({
  // Behind the hash, so that a reload finds its way whoever serves the files.
  history: createWebHashHistory(),
  routes: [
    { path: '/login', name: 'login', component: () => import('./login/LoginPage.vue') },
    { path: '/wall', name: 'wall', component: () => import('./wall/WallPage.vue') },
    {
      path: '/',
      component: () => import('./frame/FramePage.vue'),
      children: [
        { path: '', name: 'home', redirect: () => ({ name: homeOf() }) },
        { path: 'desk', name: 'desk', component: () => import('./desk/DeskPage.vue') },
        { path: 'specialist', name: 'specialist', component: () => import('./special/SpecialistPage.vue') },
        { path: 'floor', name: 'floor', component: () => import('./floor/FloorPage.vue') },
      ],
    },
    { path: '/:rest(.*)*', redirect: '/' },
  ],
})

function homeOf(): 'desk' | 'specialist' | 'floor' {
  const session = useSession()
  if (session.is('agent')) return 'desk'
  return session.is('specialist') ? 'specialist' : 'floor'
}

router.beforeEach((to) => {
  const session = useSession()
  if (to.name === 'login') return session.session ? { name: 'home' } : true
  if (!session.session) return { name: 'login' }
  const allowed =
    (to.name === 'desk' && session.is('agent')) ||
    (to.name === 'specialist' && session.is('specialist')) ||
    ((to.name === 'floor' || to.name === 'wall') && session.may('see_colleagues')) ||
    to.name === 'home'
  return allowed ? true : { name: 'home' }
})
